"""Runs every method on every split of every task, in one loop."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import rich
import tensorflow as tf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.benchmark import methods, peers, tasks
from examples.benchmark.nets import Conv
from examples.benchmark.results import Results, check_writable
from examples.benchmark.scores import score
from examples.benchmark.tasks import Budget, Options, Task
from examples.benchmark.training import fit

# Of one process: graphs of old models are never quite freed.
JOBS_PER_PROCESS = 40


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be run.

    Attributes:
        task: as the command line names it.
        methods: names of methods.
        splits: splits or seeds, None for as many as the task has.
        options: about data.
        budget: fields of `Budget` that are not the task's own.
        tuned: whether every method has its own budget, where it has one.
        curve: whether to record NLL over iterations.
        out: folder of results.
        jobs: processes at a time.
    """

    task: str
    methods: tuple[str, ...]
    splits: int | None
    options: Options
    budget: dict[str, int]
    curve: bool
    out: Path
    jobs: int
    tuned: bool = False

    def budget_of(self, task: Task, method: str) -> Budget:
        """The budget of a method on a task."""
        own = methods.METHODS.get(method)
        tuned = own.tuned.get(task.kind, {}) if self.tuned and own is not None else {}
        return dataclasses.replace(task.budget, **{**tuned, **self.budget})


@dataclasses.dataclass(frozen=True)
class Job:
    """One method on one split of one set."""

    name: str
    options: Options
    method: str
    index: int
    budget: Budget
    curve: bool


def run(request: Request) -> int:
    """Run what is missing.

    Returns:
        The number of jobs that failed; each has said why.

    Raises:
        ValueError: before anything is trained, for an unknown method or task, data that cannot
            be read or used, or results of another configuration.
    """
    check_methods(request.methods, request.task)
    check_writable(request.out)
    stores: dict[tuple[str, str], Results] = {}
    jobs = []
    for name, task in _named_tasks(request):
        if (
            task.kind != "tables"
            and request.tuned
            and not any(m.tuned.get(task.kind) for m in methods.METHODS.values())
        ):
            raise ValueError(
                f"No method has a budget of its own for {task.kind}: leave out --tuned"
            )
        _check_peers(request.methods, task)
        indices = range(request.splits or task.splits)
        for index in reversed(indices):
            data = task.load(index)
            check(task, data)
        mark = fingerprint(data)  # of the first split
        for method in request.methods:
            budget = request.budget_of(task, method)
            settings = configuration(request, task, method, budget, mark)
            packages = _packages(task, method)
            stores[name, method] = store = Results(
                request.out, task.name, method, settings, request.jobs, packages
            )
            jobs += [
                Job(name, request.options, method, i, budget, request.curve)
                for i in store.missing(indices)
            ]
    # Split by split, so that an early report compares methods on the same splits.
    jobs.sort(key=lambda job: job.index)
    failed = 0
    with _progress() as progress:
        bar = progress.add_task(request.task, total=len(jobs))
        for job, result in _outcomes(jobs, request.jobs):
            progress.advance(bar)
            if not isinstance(result, Exception):
                scores, figures = result
                try:
                    stores[job.name, job.method].add(job.index, scores, figures)
                    progress.console.print(f"{_title(job)} {_line(scores)}", soft_wrap=True)
                    continue
                except ValueError as error:  # such as scores that are not finite
                    result = error
            failed += 1
            text = f"{_title(job)} failed: {type(result).__name__}: {result}"
            progress.console.print(text, style="red", markup=False, soft_wrap=True)
    return failed


def _is_table(task: str) -> bool:
    return task.partition("/")[0] == "tables"


def default_methods(task: str) -> tuple[str, ...]:
    """The methods of a task where none are named: all but those of other libraries."""
    if not _is_table(task):
        return tuple(methods.METHODS)
    from examples.benchmark.tables.methods import METHODS

    return tuple(name for name, method in METHODS.items() if method.require is None)


def _packages(task: Task, method: str) -> tuple[str, ...]:
    """Distributions whose versions matter for a method, beside those of this project."""
    if task.kind == "tables":
        from examples.benchmark.tables.methods import METHODS

        return METHODS[method].packages
    return peers.DISTRIBUTIONS if method in peers.PEERS else ()


def check_methods(names: tuple[str, ...], task: str) -> None:
    """Refuse names that there are not, none at all, or one twice.

    Raises:
        ValueError: naming them.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--methods must be different names. Received: {','.join(names)!r}")
    if _is_table(task):
        from examples.benchmark.tables.methods import METHODS

        unknown = [name for name in names if name not in METHODS]
        if unknown:
            raise ValueError(f"A method for tables is one of {[*METHODS]}. Received: {unknown}")
        for name in names:
            require = METHODS[name].require
            if require is not None:
                require()
        return
    unknown = [name for name in names if name not in methods.METHODS and name not in peers.PEERS]
    if unknown:
        raise ValueError(
            f"A method is one of {sorted(methods.METHODS)}, or of PyTorch {sorted(peers.PEERS)}. "
            f"Received: {unknown}"
        )
    if any(name in peers.PEERS for name in names):
        peers.require()


def _check_peers(names: tuple[str, ...], task: Task) -> None:
    convolutional = any(isinstance(layer, Conv) for layer in task.net.hidden)
    found = [name for name in names if name in peers.PEERS]
    if convolutional and found:
        raise ValueError(f"PyTorch's methods know dense nets only: leave out --net cnn or {found}")


def _named_tasks(request: Request) -> list[tuple[str, Task]]:
    """Tasks with the names by which a worker finds them again."""
    found = _tasks(request.task, request.options)
    if len(found) == 1:
        return [(request.task, found[0])]
    return [(task.name.replace("-", "/", 1), task) for task in found]


def fingerprint(data: tasks.Data) -> str:
    """Digest of the first split and of what is told apart from it."""
    found = hashlib.sha256()
    parts: list[Any] = [*data.split, *data.outside.values()]
    for array in parts:
        if hasattr(array, "columns"):  # a frame, whose columns may hold text
            found.update(array.to_csv().encode())
        else:
            found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:16]


def configuration(
    request: Request, task: Task, method: str, budget: Budget, data: str
) -> dict[str, Any]:
    """What the results of a method on a task depend on."""
    options = {
        name: getattr(request.options, name) for name in ("net", "corruptions", "held_out", "smoke")
    }
    settings: dict[str, Any]
    if task.kind == "tables":
        from examples.benchmark.tables.methods import settings_of

        settings = settings_of(method, task.likelihood == "normal", request.options.smoke)
        # An estimator has its own net, and trains for as long as it takes.
        flags = {name: options[name] for name in ("held_out", "smoke")}
        return {"method": settings, **flags, "data": data}
    if method in peers.PEERS:
        settings = {"rate": peers.RATE, "samples": peers.SAMPLES}
    else:
        chosen = methods.get(method)
        fields = (f.name for f in dataclasses.fields(chosen) if f.name not in ("build", "tuned"))
        settings = {name: getattr(chosen, name) for name in fields} | methods.CONSTANTS
    net = dataclasses.asdict(task.net)
    budgets = dataclasses.asdict(budget)
    return {
        "layers": net,
        "budget": budgets,
        "method": settings,
        **options,
        "data": data,
    }


def check(task: Task, data: tasks.Data) -> None:
    """Refuse data that no method can use.

    Raises:
        ValueError: naming the part.
    """
    for name, values in zip(data.split._fields, data.split, strict=True):
        if hasattr(values, "columns"):  # a frame, which estimators check by column
            continue
        if not len(values) or not np.isfinite(values).all():
            raise ValueError(
                f"Task {task.name!r}: {name} must hold finite numbers and at least one example. "
                f"Received: shape {values.shape}, "
                f"{int((~np.isfinite(values)).sum())} numbers that are not finite"
            )
    expected = task.net.input_shape
    for name in ("x_train", "x_test"):
        found = getattr(data.split, name).shape[1:]
        if found != expected:
            raise ValueError(f"Task {task.name!r}: {name} must have examples of shape {expected}. "
                             f"Received: {found}")  # fmt: skip
    if task.likelihood == "categorical":
        labels = np.concatenate([data.split.y_train, data.split.y_test])
        if labels.max() >= task.net.outputs:
            raise ValueError(
                f"Task {task.name!r}: labels must be below {task.net.outputs}, the largest of the "
                f"training set and one. Received: {labels.max()}"
            )


# -- one job --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)  # image sets are read when a task is made
def _tasks(name: str, options: Options) -> list[Task]:
    return tasks.get(name, options)


def work(job: Job) -> Any:
    """Train and score; scores and figures, or the exception."""
    try:
        task = _tasks(job.name, job.options)[0]
        data = task.load(job.index)
        if task.kind == "tables":
            from examples.benchmark.tables import methods as of_tables

            is_normal = task.likelihood == "normal"
            fitted = of_tables.fit(job.method, is_normal, data, job.index, job.options.smoke)
        elif job.method in peers.PEERS:
            fitted = peers.fit(job.method, task, data, job.budget, job.index)
        else:
            method = methods.get(job.method)
            fitted = fit(method, task, data, job.budget, job.index, job.curve)
        return score(fitted, task, data)
    except Exception as error:  # one failed job must not end the others
        return error
    finally:
        keras.backend.clear_session()


def _outcomes(jobs: list[Job], processes: int) -> Iterator[tuple[Job, Any]]:
    """Jobs with their results, as they finish."""
    if processes == 1:
        yield from ((job, work(job)) for job in jobs)
        return
    # New processes after so many jobs: the executor's own `max_tasks_per_child` can hang.
    size = JOBS_PER_PROCESS * processes
    for start in range(0, len(jobs), size):
        rest = jobs[start : start + size]
        for is_last in (False, True):
            rest = yield from _parallel(rest, processes, is_last)


def _parallel(
    jobs: list[Job], processes: int, is_last: bool
) -> Generator[tuple[Job, Any], None, list[Job]]:
    """Outcomes of jobs in new processes.

    One that is killed takes all jobs along that have not ended: those are returned for another
    attempt, or failed if this is the last.
    """
    if not jobs:
        return []
    lost = []
    with concurrent.futures.ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare_process,
        initargs=(max(1, (os.cpu_count() or 1) // processes),),
    ) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        for future in concurrent.futures.as_completed(futures):
            job = futures[future]
            try:
                yield job, future.result()
            except concurrent.futures.process.BrokenProcessPool as error:
                if is_last:
                    yield job, RuntimeError(f"a process was killed ({error}): run again")
                else:
                    lost.append(job)
    return lost


def _prepare_process(threads: int) -> None:
    """Its share of the cores; and its end when the process that started it is killed."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # PyTorch, which is imported later
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# -- what is seen ---------------------------------------------------------------------------------


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), console=rich.get_console())


def _title(job: Job) -> str:
    return f"{job.name} {job.method} {job.index}:"


def _line(scores: dict[str, float]) -> str:
    names = "rmse", "log_likelihood", "accuracy", "nll", "ece", "auroc", "train_seconds"
    return ", ".join(f"{name} {scores[name]:.4g}" for name in names if name in scores)
