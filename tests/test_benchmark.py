"""The benchmark runner: results that survive, errors before training, tables that are right."""

import concurrent.futures.process
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import BayesianRidge

import tfp_rank1 as r1
from examples.benchmark import __main__ as command_line
from examples.benchmark import (
    memory,
    methods,
    nets,
    published,
    report,
    results,
    runner,
    tasks,
    training,
)
from examples.benchmark.tasks import Budget, Options

SMOKE = Options(smoke=True)


def request(out, task="uci", names=("linear",), options=SMOKE, **kwargs):
    """A request for the shortest runs there are."""
    arguments = {"splits": 2, "budget": {}, "curve": False, "jobs": 1, **kwargs}
    return runner.Request(task, tuple(names), options=options, out=out, **arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two methods on two splits, with curves."""
    out = tmp_path_factory.mktemp("results")
    assert runner.run(request(out, names=("deterministic", "bali"), curve=True)) == 0
    return out


def test_results_hold_scores_configuration_and_origin(finished):
    content = results.read(finished / "uci-smoke" / "bali.json")
    assert sorted(content["splits"]) == ["0", "1"]
    (origin,) = content["origins"]
    assert {"keras", "tensorflow", "rank1-bali"} <= origin["versions"].keys()
    assert content["splits"]["1"]["origin"] == 0
    assert content["configuration"]["budget"] == {"batch_size": 64, "epochs": 2, "steps": 20}
    rmse = results.values(content, "rmse")
    expected = np.std(list(rmse.values()), ddof=1) / np.sqrt(2)
    assert content["summary"]["rmse"]["standard_error"] == pytest.approx(expected, rel=1e-4)
    curve = content["splits"]["1"]["figures"]["curve"]
    assert np.isfinite([[p["train_nll"], p["test_nll"], p["seconds"]] for p in curve]).all()
    scores = content["splits"]["0"]["scores"]
    assert {"log_likelihood", "crps", "coverage_50", "coverage_90", "coverage_95"} <= scores.keys()
    # Means [11, 50] and [51, 1], triangular factors of 11, 50, 51 and 1 rows, and the noise.
    assert scores["parameters"] == 550 + 51 + 66 + 1275 + 1326 + 1 + 1


def test_origins_name_the_packages_that_matter(tmp_path):
    store = results.Results(tmp_path, "task", "method", {}, packages=("pytest",))
    store.add(0, {"rmse": 1.0}, {})
    versions = results.read(store.path)["origins"][0]["versions"]
    assert versions["pytest"] == pytest.__version__


def test_nothing_is_done_twice_and_nothing_is_lost(finished, monkeypatch):
    path = finished / "uci-smoke" / "bali.json"
    before = path.read_text()
    monkeypatch.setattr(runner, "work", lambda job: pytest.fail("trained again"))
    again = functools.partial(request, finished, names=("bali",), curve=True)
    assert runner.run(again()) == 0
    assert path.read_text() == before
    done = []

    def killed(job):
        done.append(job.index)
        if len(done) == 2:
            raise KeyboardInterrupt
        return {"rmse": 1.0}, {}

    monkeypatch.setattr(runner, "work", killed)
    with pytest.raises(KeyboardInterrupt):
        runner.run(again(splits=5))
    assert sorted(results.read(path)["splits"]) == ["0", "1", "2"]
    monkeypatch.setattr(runner, "work", lambda job: ({"rmse": 2.0}, {}))
    assert runner.run(again(splits=5)) == 0
    content = results.read(path)
    assert list(results.values(content, "rmse").values())[2:] == [1.0, 2.0, 2.0]
    path.write_text(before)


def test_a_failing_job_does_not_end_the_others(tmp_path, monkeypatch):
    def work(job):
        return ValueError("broken") if job.index == 0 else ({"rmse": 1.0}, {})

    monkeypatch.setattr(runner, "work", work)
    assert runner.run(request(tmp_path)) == 1
    assert list(results.read(tmp_path / "uci-smoke" / "linear.json")["splits"]) == ["1"]


def test_scores_that_are_not_finite_are_a_failure(tmp_path, monkeypatch):
    """And the next run tries again."""
    monkeypatch.setattr(runner, "work", lambda job: ({"rmse": np.nan if job.index else 1.0}, {}))
    assert runner.run(request(tmp_path)) == 1
    assert runner.run(request(tmp_path)) == 1
    assert list(results.read(tmp_path / "uci-smoke" / "linear.json")["splits"]) == ["0"]


def test_lists_of_numbers_take_one_line():
    content = {"a": [1, 2.5, None], "b": {"c": [[1, 2], [3, 4]]}, "d": ["x, y", "z"], "e": []}
    text = results.to_text(content)
    assert '"a": [1, 2.5, null]' in text
    assert json.loads(text) == content


def test_two_runs_at_once_lose_nothing(tmp_path):
    first, second = (results.Results(tmp_path, "uci-boston", "bali", {}) for _ in range(2))
    first.add(0, {"rmse": 1.0}, {})
    second.add(1, {"rmse": 2.0}, {})
    assert list(results.read(second.path)["splits"]) == ["0", "1"]


@pytest.mark.parametrize(("broken_pools", "failed"), [(1, 0), (2, 1)])
def test_jobs_of_a_killed_process_are_tried_again(tmp_path, monkeypatch, broken_pools, failed):
    """Once; then they have failed, and nothing else has."""
    pools = []

    class Pool:
        def __init__(self, *args, **kwargs):
            pools.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def submit(self, function, job):
            future = concurrent.futures.Future()
            if job.index and len(pools) <= broken_pools:
                future.set_exception(concurrent.futures.process.BrokenProcessPool("killed"))
            else:
                future.set_result(({"rmse": 1.0}, {}))
            return future

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Pool)
    assert runner.run(request(tmp_path, jobs=2)) == failed
    done = list(results.read(tmp_path / "uci-smoke" / "linear.json")["splits"])
    assert done == ["0", "1"][: 2 - failed]
    assert len(pools) == 2


@pytest.mark.slow
def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    """Which is killed, and can tell nobody."""
    script = tmp_path / "pool.py"
    script.write_text(
        "import concurrent.futures, multiprocessing, os, signal\n"
        "from examples.benchmark import runner\n"
        "if __name__ == '__main__':\n"
        "    pool = concurrent.futures.ProcessPoolExecutor(\n"
        "        1, multiprocessing.get_context('spawn'), runner._prepare_process, (1,))\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    worker = int(done.stdout)
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.1)
    pytest.fail(f"process {worker} is still there")


def test_linear_regression_is_exact():
    """The evidence's optimum, found by scikit-learn, with its noise apart from its uncertainty."""
    data = tasks.get("uci", SMOKE)[0].load(0)
    fitted = training.fit_linear(data)
    p = fitted.predict(data.split.x_test)
    model = BayesianRidge().fit(data.split.x_train, data.split.y_train.ravel())
    mean, stddev = model.predict(data.split.x_test, return_std=True)
    np.testing.assert_allclose(np.ravel(p.mean()), mean, atol=1e-5)
    np.testing.assert_allclose(np.ravel(p.stddev()), stddev, rtol=1e-4)
    np.testing.assert_allclose(np.ravel(p.aleatoric_variance()), 1 / model.alpha_, rtol=1e-4)


def test_results_of_other_data_are_not_mixed(tmp_path):
    first = Options(npz=write_npz(tmp_path / "a.npz"))
    assert runner.run(request(tmp_path / "out", "mine", options=first, splits=1)) == 0
    other = {"x_train": np.full((20, 6, 6), 7, "uint8")}
    second = Options(npz=write_npz(tmp_path / "b.npz", **other))
    with pytest.raises(ValueError, match=r"another configuration .*data"):
        runner.run(request(tmp_path / "out", "mine", options=second))


def test_another_configuration_is_refused(finished):
    with pytest.raises(ValueError, match=r"budget.*before.*now"):
        runner.run(request(finished, names=("bali",), curve=True, budget={"epochs": 3}))


def write_npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 255, (20, 6, 6), "uint8"), "y_train": np.arange(20) % 3,
        "x_test": rng.integers(0, 255, (10, 6, 6), "uint8"), "y_test": np.arange(10) % 3,
    }  # fmt: skip
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "y_test"),
        ({"x_train": np.full((20, 6, 6), np.nan)}, "finite numbers in"),
        ({"x_train": np.full((20, 6, 6), 255.0)}, "finite numbers in"),
        ({"y_train": np.arange(20) / 2}, "whole-numbered label"),
        ({"y_train": np.arange(19)}, "20 images and 19 labels"),
        ({"x_test": np.zeros((10, 36), "uint8")}, r"\[N, H, W\]"),
        ({"x_test": np.zeros((10, 5, 5), "uint8")}, "examples of shape"),
        ({"x_test": np.zeros((0, 6, 6), "uint8"), "y_test": np.zeros(0, int)}, "at least one"),
        ({"y_test": np.arange(10)}, "labels must be below 3"),
    ],
)
def test_bad_image_files_are_named_before_training(tmp_path, changes, message, monkeypatch):
    monkeypatch.setattr(runner, "work", lambda job: pytest.fail("trained"))
    options = Options(npz=write_npz(tmp_path / "set.npz", **changes))
    with pytest.raises(ValueError, match=message):
        runner.run(request(tmp_path, "mine", options=options))


def test_missing_and_corrupt_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.npz"):
        tasks.get("mine", Options(npz=tmp_path / "gone.npz"))
    (tmp_path / "bad.npz").write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match=r"bad\.npz"):
        tasks.get("mine", Options(npz=tmp_path / "bad.npz"))
    whole = write_npz(tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.npz"):
        tasks.get("mine", Options(npz=tmp_path / "cut.npz"))
    (tmp_path / "uci-x").mkdir()
    (tmp_path / "uci-x" / "bali.json").write_text("{")
    with pytest.raises(ValueError, match="no results file"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"splits": []},
        {"splits": {"0": {}}},
        {"splits": {"0": {"scores": {"rmse": None}, "origin": 0}}},
        {"splits": {"0": {"scores": {"rmse": 1.0}, "origin": 7}}},
        {"origins": [{}]},
    ],
)
def test_damaged_results_are_named(tmp_path, damage):
    store(tmp_path, "uci-boston", "bali", [1.0])
    path = tmp_path / "uci-boston" / "bali.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ValueError, match="no results file"):
        report.write(tmp_path)
    with pytest.raises(ValueError, match="no results file"):
        results.Results(tmp_path, "uci-boston", "bali", {})


@pytest.mark.parametrize(
    ("task", "names", "message"),
    [
        ("uci", ["none"], r"A method is one of .*'bali'.*torch_ensemble.*Received: \['none'\]"),
        ("uci/none", ["bali"], "Sets of 'uci'"),
        ("uci", [], "must be different names"),
        ("uci", ["bali", "bali"], "must be different names"),
    ],
)
def test_unknown_names_are_refused(tmp_path, task, names, message):
    with pytest.raises(ValueError, match=message):
        runner.run(request(tmp_path, task, names))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("uci", Options(smoke=True, corruptions=True), "has no --corruptions"),
        ("toy/gap", Options(held_out=True), "has no --held-out"),
        ("toy/gap", Options(manual_dir=Path()), "has no --manual-dir"),
        ("uci/boston", Options(manual_dir=Path("/not/there")), "--manual-dir must be a folder"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, task, options, message):
    with pytest.raises(ValueError, match=message):
        runner.run(request(tmp_path, task, options=options))


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "work", lambda job: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--out must be a folder"):
        runner.run(request(tmp_path / "file"))


def test_an_image_task_has_scores_of_shift_and_outside(tmp_path):
    options = Options(
        npz=write_npz(tmp_path / "a.npz"), outside_npz=write_npz(tmp_path / "b.npz"),
        corruptions=True,
    )  # fmt: skip
    assert runner.run(request(tmp_path, "mine", options=options, splits=1)) == 0
    content = results.read(tmp_path / "mine" / "linear.json")
    scores = content["splits"]["0"]["scores"]
    assert {"auroc", "aupr", "fpr95", "outside_confidence", "nll/contrast_5"} <= scores.keys()
    assert {"reliability", "roc"} == content["splits"]["0"]["figures"].keys()
    report.write(tmp_path)
    assert (tmp_path / "mine-roc.png").stat().st_size > 1000
    assert "nll, severity 5" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_method_builds_both_kinds_of_nets(name):
    net = nets.Net((6, 6, 1), (nets.Conv(2, 3, 2), nets.Dense(4)), 3)
    model = methods.get(name).build(net, "categorical")
    with r1.posterior_mean():  # a BALI net that was never fitted has no other answer
        p = model.posterior_predictive(np.zeros((2, 6, 6, 1), "float32"), 4, reduce=None)
    np.testing.assert_allclose(np.sum(p.mean(), axis=1), 1.0, rtol=1e-5)


def store(folder, task, method, numbers, configuration=None):
    """A results file by hand."""
    file = results.Results(folder, task, method, configuration or {})
    for i, value in enumerate(numbers):
        file.add(i, {"log_likelihood": value, "rmse": -value}, {})


def test_the_report_ranks_and_pairs(tmp_path):
    for task, shift in (("uci-boston", 0.0), ("uci-yacht", 1.0)):
        store(tmp_path, task, "bali", [shift - 1.0, shift - 2.0])
        store(tmp_path, task, "linear", [shift - 2.0, shift - 5.0])
    store(tmp_path, "uci-boston", "mc_dropout", [-0.5])
    report.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    table = text.split("## UCI regression: log likelihood")[1].split("##")[0]
    assert "| bali | -1.50 +- 0.50 | -0.50 +- 0.50 | 1.00 |" in table
    assert "| mc_dropout | -0.500 (1) |  |  |" in table  # no rank without all sets and splits
    assert "| *PBP*" in table
    assert (tmp_path / "uci-ranks.png").stat().st_size > 1000
    paired = text.split("paired differences in log-likelihood")[1].split("##")[0]
    assert "| linear | +2.0 +- 1.0 | +2.0 +- 1.0 |" in paired


def test_the_report_compares_like_with_like(tmp_path):
    """Results of a smoke run are no set of UCI; held-out scores stand by themselves."""
    held = {"held_out": True, "budget": {"batch_size": 32, "epochs": 7}}
    store(tmp_path, "uci-boston", "bali", [-1.0, -2.0], held)
    store(tmp_path, "uci-boston", "linear", [-2.0, -3.0], held)
    store(tmp_path, "uci-smoke", "linear", [-5.0])
    report.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| bali | -1.50 +- 0.50 | 1.00 |" in text
    assert "*PBP*" not in text
    assert "at least 7 epochs of batch 32; scored on a fifth of the training set" in text
    store(tmp_path, "uci-boston", "mc_dropout", [-2.0])
    with pytest.raises(ValueError, match="differ in 'held_out'"):
        report.write(tmp_path)


@pytest.mark.parametrize("name", ["equal", "tuned"])
def test_committed_results_make_the_committed_report(name, tmp_path, monkeypatch):
    """Nothing in it was written by hand."""
    folder = Path(__file__).parents[1] / "examples" / "benchmark" / "results" / name
    shutil.copytree(folder, tmp_path / "results")
    monkeypatch.setattr(report.figures, "_save", lambda figure, path: report.figures.plt.close())
    monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)
    report.write(tmp_path / "results")
    assert (tmp_path / "results" / "report.md").read_text() == (folder / "report.md").read_text()


def test_the_command_line_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "report", "--out", str(tmp_path)])
    assert command_line.main() == 2
    assert capsys.readouterr().err.startswith("error: There are no results below")


def test_budgets_and_published_rows():
    assert Budget(32, 20, 4000).epochs_for(320) == 400
    assert Budget(32, 20, 4000).epochs_for(32_000) == 20
    assert all(len(row.rmse) == len(row.log_likelihood) == 6 for row in published.ROWS.values())
    assert json.dumps(results.rounded({"a": [1.23456789]})) == '{"a": [1.23457]}'


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_counts_what_is_freed_again():
    assert 45_000_000 < memory.peak(lambda: b"x" * 50_000_000) < 60_000_000


# -- tables ---------------------------------------------------------------------------------------


def test_estimators_are_scored_and_ranked_on_tables(tmp_path):
    names = "linear", "boosting", "rank1_table", "rank1_table_normal"
    assert runner.run(request(tmp_path, task="tables", names=names, splits=1)) == 0
    content = results.read(tmp_path / "tables-smoke" / "rank1_table.json")
    scores = content["splits"]["0"]["scores"]
    assert {"nll", "ece", "train_seconds", "member_variance"} <= scores.keys()
    assert 0.0 <= scores["member_disagreement"] <= 1.0
    assert scores["member_nll"] >= scores["nll"]  # Jensen
    assert content["configuration"]["method"]["ensemble_size"] == "4"
    normal = results.read(tmp_path / "tables-smoke" / "rank1_table_normal.json")
    drawn = normal["splits"]["0"]["scores"]
    assert drawn["drawn_variance"] > drawn["member_variance"]
    shutil.copytree(tmp_path / "tables-smoke", tmp_path / "tables-a")
    for path in (tmp_path / "tables-a").iterdir():
        path.write_text(path.read_text().replace("tables-smoke", "tables-a"))
    report.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## Tables: nll" in text
    assert "| rank1_table less | a |" in text
    assert "## Tables: rmse" not in text


def write_csv(path):
    """Sixty prices that are twice a column."""
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{rng.choice(['x', 'y'])},{2 * a:.3f}" for a in rng.normal(size=60)]
    path.write_text("\n".join(["a,kind,price", *rows]))
    return path


def test_table_peers_answer_with_classes_and_numbers(tmp_path):
    """Regression: members of a regression were scored as classes."""
    pytest.importorskip("tabm", reason="peers are an extra")
    mine = Options(smoke=True, table=write_csv(tmp_path / "mine.csv"), target="price")
    for task, options, expected in (
        ("tables", SMOKE, {"nll", "member_disagreement"}),
        ("tables/file", mine, {"rmse"}),
    ):
        out = tmp_path / task
        asked = request(out, task=task, names=("tabm",), splits=1, options=options)
        assert runner.run(asked) == 0
        (path,) = out.glob("tables-*/tabm.json")
        scores = results.read(path)["splits"]["0"]["scores"]
        assert {*expected, "member_variance"} <= scores.keys()


def test_a_table_peer_takes_categories_that_it_was_not_trained_on():
    """They have no place of their own, as in any one-hot encoding; the package stops at them."""
    torch = pytest.importorskip("torch", reason="peers are an extra")
    pytest.importorskip("tabm", reason="peers are an extra")
    from examples.benchmark.tables.tabm import TabMClassifier

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=60), "kind": rng.choice(["x", "y"], 60)})
    net = TabMClassifier(epochs=1).fit(frame, np.arange(60) % 2)
    codes = net.net_.cat_module(torch.tensor([[0], [1], [2]]))
    np.testing.assert_array_equal(codes, [[1, 0], [0, 1], [0, 0]])
    assert net.predict_proba(frame[:1].assign(kind="z")).shape == (1, 2)


def test_a_table_of_ones_own(tmp_path):
    options = Options(table=write_csv(tmp_path / "mine.csv"), target="price")
    names = "linear", "boosting"
    asked = request(tmp_path / "out", task="tables/file", names=names, options=options)
    assert runner.run(asked) == 0
    found = results.read(tmp_path / "out" / "tables-mine" / "linear.json")
    assert found["summary"]["rmse"]["mean"] < 0.1
    with pytest.raises(ValueError, match=r"--target must be one of \['a', 'kind', 'price'\]"):
        tasks.get("tables/file", Options(table=tmp_path / "mine.csv", target="cost"))
    for task, wrong, message in (
        ("tables/none", Options(), "Sets of 'tables'"),
        ("tables/file", Options(), "--table FILE"),
        ("tables/concrete", Options(), "--manual-dir"),
        ("tables/digits", Options(table=tmp_path / "mine.csv"), "--table"),
        ("tables/file", Options(table=tmp_path / "none.csv"), "A table is a file"),
        ("uci", Options(table=tmp_path / "mine.csv"), "--table"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.get(task, wrong)
    (tmp_path / "gaps.csv").write_text("a,kind,y\n1,x,3\n2,,\n")
    with pytest.raises(ValueError, match=r"a target in every row.*none in 1 rows"):
        tasks.get("tables/file", Options(table=tmp_path / "gaps.csv"))
    (tmp_path / "counts.csv").write_text("\n".join(["a,y", *(f"{i},{i}" for i in range(20))]))
    counts = Options(table=tmp_path / "counts.csv", regression=True)
    assert tasks.get("tables/file", counts)[0].likelihood == "normal"
    with pytest.raises(ValueError, match="A method for tables"):
        runner.run(request(tmp_path, task="tables", names=("bali",)))


def test_fewer_rows_of_a_table_have_the_same_test_part():
    whole, few = (tasks.get("tables/breast_cancer", Options(rows=n))[0] for n in (None, 50))
    assert (whole.name, few.name) == ("tables-breast_cancer", "tables-breast_cancer-50")
    whole, few = whole.load(1).split, few.load(1).split
    assert (len(whole.x_train), len(few.x_train)) == (398, 50)
    assert few.x_test.equals(whole.x_test)
    assert set(few.x_train.index) <= set(whole.x_train.index)
    with pytest.raises(ValueError, match="no --rows"):
        tasks.get("uci", Options(rows=50))
    for rows, message in ((399, "398 rows to train on"), (1, "lack 1 of the classes")):
        with pytest.raises(ValueError, match=message):
            tasks.get("tables/breast_cancer", Options(rows=rows))[0].load(0)
    (held_out,) = tasks.get("tables/breast_cancer", Options(rows=50, held_out=True))
    assert len(held_out.load(1).split.x_train) == 50
