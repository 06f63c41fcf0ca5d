"""raybench: fair tables for image classifiers, from a suite file, on Ray."""

__version__ = "0.1.0"
