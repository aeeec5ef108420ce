"""Uncertainty methods side by side.

    python -m examples.benchmark uci --jobs 2
    python -m examples.benchmark uci/boston --methods bali,linear --splits 5
    python -m examples.benchmark mnist --curve
    python -m examples.benchmark mnist --npz mnist.npz --outside-npz fashion_mnist.npz
    python -m examples.benchmark toy
    python -m examples.benchmark tables/breast_cancer
    python -m examples.benchmark tables/adult --rows 2000
    python -m examples.benchmark tables/file --table houses.csv --target price --regression
    python -m examples.benchmark report

Tasks: uci (or uci/SET), toy (or toy/SET), tables (or tables/SET), mnist, fashion_mnist, cifar10, or
any image set of TFDS by name. Results go to one JSON per task and method below --out; what is there
is not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from examples.benchmark import report
from examples.benchmark.runner import Request, default_methods, run
from examples.benchmark.tasks import Options

BUDGET = "epochs", "steps", "batch_size"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", help="a task, or `report`")
    parser.add_argument("--methods", help="names, by commas; default: all of this project")
    parser.add_argument("--splits", "--seeds", type=int, help="the first so many; default: all")
    parser.add_argument("--epochs", type=int, help="at least so many, in place of the task's")
    parser.add_argument("--steps", type=int, help="at least so many, in place of the task's")
    parser.add_argument("--batch-size", type=int, help="in place of the task's")
    parser.add_argument("--tuned", action="store_true", help="each method's own budget")
    parser.add_argument(
        "--curve", action="store_true", help="record NLL over iterations of what is still to be run"
    )
    parser.add_argument("--net", default="mlp", help="mlp (784-100-100-10) or cnn, for images")
    parser.add_argument("--corruptions", action="store_true", help="score corrupted images too")
    parser.add_argument("--held-out", action="store_true",
                        help="score a fifth of the training set: to choose settings")  # fmt: skip
    parser.add_argument("--npz", type=Path, help="a local image archive in place of TFDS")
    parser.add_argument("--outside-npz", type=Path, help="one of out-of-distribution images")
    parser.add_argument("--data-dir", type=Path, help="of TFDS")
    parser.add_argument("--table", type=Path, help="a csv file or npz archive, for tables/file")
    parser.add_argument("--target", help="column of its targets; default: the last one")
    parser.add_argument(
        "--regression", action="store_true", help="its targets are numbers, although whole"
    )
    parser.add_argument("--rows", type=int, help="at most so many rows of a table to train on")
    parser.add_argument("--manual-dir", type=Path, help="files that TFDS cannot download")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of results")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--smoke", action="store_true", help="every method for seconds only")
    return parser.parse_args()


def main() -> int:
    """Run a task or write the report."""
    args = arguments()
    options = Options(
        args.data_dir, args.manual_dir, args.npz, args.outside_npz, args.net, args.corruptions,
        args.held_out, args.smoke, args.table, args.target, args.regression, args.rows,
    )  # fmt: skip
    names = default_methods(args.task)
    if args.methods is not None:
        names = tuple(name for name in args.methods.split(",") if name)
    try:
        if args.task == "report":
            print(report.write(args.out))
            return 0
        for flag in ("splits", "rows", "jobs", *BUDGET):
            value = getattr(args, flag)
            if value is not None and value < 1:
                raise ValueError(f"--{flag.replace('_', '-')} must be positive. Received: {value}")
        budget = {name: getattr(args, name) for name in BUDGET if getattr(args, name) is not None}
        if args.epochs is not None:
            budget.setdefault("steps", 0)
        if args.tuned and budget:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in BUDGET)
            raise ValueError(f"--tuned gives each method its own budget: leave out {flags}")
        request = Request(
            args.task,
            names,
            args.splits,
            options,
            budget,
            args.curve,
            args.out,
            args.jobs,
            args.tuned,
        )
        return 1 if run(request) else 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
