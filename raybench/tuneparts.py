"""What stands in the place of parts of Ray Tune. Importing this puts it there.

Uses names of Ray that are not public, each marked with "private"; tests/test_schedule.py runs every one of them.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import raybench.rayenv  # noqa: F401  # before Ray: sets what it reads

# Read by Tune when it is imported or when fit() starts.
os.environ.update(
    RAY_AIR_NEW_OUTPUT="0",  # its progress tables go to stdout, which is for ours
    TUNE_PRINT_ALL_TRIAL_ERRORS="0",  # they become rows
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",  # five files per trial
    TUNE_GLOBAL_CHECKPOINT_S="86400",  # its state is never read
    TUNE_DISABLE_STRICT_METRIC_CHECKING="1",
    TUNE_DISABLE_SIGINT_HANDLER="1",  # `raybench.schedule` has its own
)

import ray
from ray import tune
from ray.air.execution._internal import RayActorManager  # private
from ray.tune.execution import tune_controller  # private
from ray.tune.execution.class_cache import _ActorClassCache  # private
from ray.tune.progress_reporter import TrialProgressCallback

from raybench.actor import ActorEnded


def speak(verbose: bool) -> None:
    """Let Tune print its own reports, or nothing."""
    if verbose:
        os.environ.update(RAY_AIR_NEW_OUTPUT="1", TUNE_PRINT_ALL_TRIAL_ERRORS="1")
    else:
        for name in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


class ActorManager(RayActorManager):  # type: ignore[misc]
    """Gives the tasks of a trial its name, and lets whatever ends an actor, or keeps it from starting, end one trial.

    At an error that the base does not know, such as a kill by Ray's memory monitor, fit() would end.
    """

    def add_actor(self, cls: Any, kwargs: dict[str, Any], *args: Any, **more: Any) -> Any:
        tracked = super().add_actor(cls, kwargs, *args, **more)
        tracked.shown = kwargs["config"]["name"]
        return tracked

    def _schedule_tracked_actor_task(self, tracked_actor_task: Any, method_name: str, **details: Any) -> Any:
        """Ray calls a process after the task that it runs."""
        tracked = tracked_actor_task._tracked_actor
        actor, resources = live = self._live_actors_to_ray_actors_resources[tracked]
        if method_name == "reset":
            tracked.shown = details["args"][0]["name"]
        self._live_actors_to_ray_actors_resources[tracked] = _Named(actor, tracked.shown), resources
        try:
            return super()._schedule_tracked_actor_task(tracked_actor_task, method_name, **details)
        finally:
            self._live_actors_to_ray_actors_resources[tracked] = live

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor=tracked_actor, exception=_known(exception))

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task=tracked_actor_task, exception=_known(exception))


def _known(error: Exception) -> Exception:
    """Return an error that Tune knows: of a task, or of an actor that has ended."""
    known = ray.exceptions.RayActorError | ray.exceptions.RayTaskError
    return error if isinstance(error, known) else ActorEnded(error)


class ActorClasses(_ActorClassCache):  # type: ignore[misc]
    """Asks for no environment of their own for actors on a cluster that was started here, where every process has the
    right one: only then does Ray give them the processes that it has started already."""

    def get(self, trainable_cls: type[tune.Trainable]) -> Any:
        if ray.get_runtime_context().runtime_env:
            return super().get(trainable_cls)
        if trainable_cls not in self._cache:
            self._cache[trainable_cls] = ray.remote(trainable_cls)
        return self._cache[trainable_cls]


class _Named:
    """An actor whose tasks are called after the trial that runs there."""

    def __init__(self, actor: Any, name: str) -> None:
        self.actor, self.name = actor, name

    def __getattr__(self, method: str) -> Any:
        return getattr(self.actor, method).options(name=f"RaybenchTrial.{method}[{self.name}]")


class Silence(TrialProgressCallback):  # type: ignore[misc]
    """Stands in the place of Tune's own progress lines, which go to stdout."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        pass

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        pass

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        pass


tune_controller.RayActorManager = ActorManager
tune_controller._ActorClassCache = ActorClasses
