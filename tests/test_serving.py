"""An exported model behind HTTP: many clients, sizes and mistakes."""

import concurrent.futures
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf
from strategy_case import CLASSES, INPUTS, METHODS, train_briefly

import bali_keras as bk
from examples.datasets.small import load_digits
from examples.serving import client
from examples.serving.client import ask
from examples.serving.server import Server


@pytest.fixture(scope="module", params=["bali", "rank1_normal"])
def url(request, tmp_path_factory):
    """Where a small classifier answers."""
    folder = tmp_path_factory.mktemp("export") / "served"
    train_briefly(METHODS[request.param]()).export_predictive(str(folder), num_samples=4)
    with Server(folder, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{server.path}"
        server.shutdown()


def inputs(rows, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, INPUTS)).astype("float32")


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_any_number_of_rows(url, rows):
    answer = ask(url, inputs(rows))
    assert answer["probs"].shape == (rows, CLASSES)
    np.testing.assert_allclose(answer["probs"].sum(axis=1), 1.0, atol=1e-4)
    assert (answer["mutual_information"] > -1e-5).all()
    assert answer["entropy"].shape == (rows,)


def test_many_clients_at_once(url):
    """Valid answers from samples of their own: no two the same."""
    sizes = np.random.default_rng(0).integers(1, 40, 64)
    x = inputs(40)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: ask(url, x[:n])["probs"], sizes))
    for size, answer in zip(sizes, answers, strict=True):
        assert answer.shape == (size, CLASSES)
        assert np.isfinite(answer).all()
    first = {tuple(answer[0]) for answer in answers}
    assert len(first) == len(answers)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
@pytest.mark.parametrize("method", ["bali", "rank1_normal"])
def test_every_precision_is_served(method, policy, tmp_path):
    """Answers in float32, those of the model itself."""
    keras.config.set_dtype_policy(policy)
    model = train_briefly(METHODS[method]())
    model.export_predictive(str(tmp_path / "served"), num_samples=2000)
    served = tf.saved_model.load(str(tmp_path / "served"))
    x = tf.constant(inputs(6), model.inputs[0].dtype)
    found = served.serve(x)
    assert {value.dtype for value in found.values()} == {tf.float32}
    expected = model.posterior_predictive(x, num_samples=2000, seed=0)
    np.testing.assert_allclose(found["probs"], expected.mean(), atol=0.03)
    np.testing.assert_allclose(found["entropy"], expected.entropy(), atol=0.05)


def resident_bytes():
    """Memory of this process, which is also the server's."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_ten_thousand_requests(url):
    """From eight threads: every answer valid, none repeated, no memory kept."""
    x = inputs(64)
    rows = np.random.default_rng(1).integers(1, 65, 10_000)
    first, memory = set(), []

    def request(n):
        probs = ask(url, x[:n])["probs"]
        assert probs.shape == (n, CLASSES)
        assert np.isfinite(probs).all()
        return tuple(probs[0])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for part in np.split(rows, 10):
            first.update(pool.map(request, part))
            memory.append(resident_bytes())
    print(f"MiB after every 1,000 requests: {[m >> 20 for m in memory]}")
    assert len(first) == len(rows)
    assert memory[-1] - memory[1] < 20 * 2**20


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Expecting value|instances"),
        (b"{]", "Expecting"),
        (b'{"rows": [1]}', "no .*instances"),
        (b'{"instances": []}', "at least one"),
        (b'{"instances": [[1.0, 2.0]]}', r"must have shape .*\(1, 2\)"),
        (b'{"instances": [["a", "b", "c", "d", "e"]]}', "nested lists of numbers"),
        (b'{"instances": [[NaN, 1, 1, 1, 1]]}', "finite"),
    ],
)
def test_mistakes_are_named(url, body, message):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, body), timeout=10)
    assert caught.value.code == 400
    assert re.search(message, json.load(caught.value)["error"])


@pytest.mark.parametrize(
    ("head", "body", "message"),
    [
        ("Content-Length: -1", b"", "needs a Content-Length"),
        ("Transfer-Encoding: chunked", b"0\r\n\r\n", "needs a Content-Length"),
        (None, b'{"instances": [[1' + 400 * b"0" + b", 1, 1, 1, 1]]}", "nested lists of numbers"),
        (None, 100_000 * b"[", "recursion"),
    ],
)
def test_mistakes_get_an_answer_that_ends_the_connection(url, head, body, message):
    """Not silence, not a traceback, and nothing that the next request would be read from."""
    address = urllib.parse.urlparse(url)
    head = head or f"Content-Length: {len(body)}"
    request = f"POST {address.path} HTTP/1.1\r\nHost: here\r\n{head}\r\n\r\n".encode() + body
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answer:
            content = answer.read().decode()  # to the end
    assert content.startswith("HTTP/1.1 400")
    assert message in content


def test_another_address_is_named(url):
    with pytest.raises(ValueError, match=r"404.*POST /v1/models/served:predict"):
        ask(url.replace("served", "nobody"), inputs(1))


@pytest.mark.slow
def test_a_page_knows_the_model(url):
    """Its address and the shape of an instance; no other address has a page."""
    address, path = url.rsplit("/v1/", 1)
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    model = json.loads(re.search(r"const MODEL = (\{.*\});", page).group(1))
    assert model == {"path": f"/v1/{path}", "shape": [INPUTS]}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}/page.html")


def test_the_commands(tmp_path, capsys):
    """A server and a client as the README starts them, on a model for digits."""
    inputs = keras.Input((64,))
    model = bk.BaliModel(inputs, bk.layers.DenseBali(10)(inputs), likelihood="categorical")
    model.compile()
    split = load_digits(seed=0)
    model.fit(split.x_train, split.y_train, batch_size=64, epochs=3, verbose=0)
    model.export_predictive(str(tmp_path / "served"), num_samples=64)
    command = [sys.executable, "-m", "examples.serving.server", tmp_path / "served", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip()
            client.main([address])
        finally:
            server.kill()
    answers = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert {"probs", "entropy", "mutual_information"} <= answers.keys()
    assert np.argmax(json.loads(answers["probs"]), axis=1).tolist() == split.y_test[:2].tolist()
