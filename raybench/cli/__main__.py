"""``python -m raybench.cli`` is ``raybench``."""

from raybench.cli import main

main()
