"""The packages import with TensorFlow only, and say so."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["tfp_rank1", "bali_keras"])
def test_other_backends_are_refused(package):
    result = subprocess.run(
        [sys.executable, "-c", f"import {package}"],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert f"{package} needs Keras 3 with the TensorFlow backend" in result.stderr or (
        "needs Keras 3 with the TensorFlow backend" in result.stderr
    )
    assert "Received: backend='jax'" in result.stderr
    assert "KERAS_BACKEND=tensorflow" in result.stderr


def test_versions_agree():
    import bali_keras
    import tfp_rank1

    assert bali_keras.__version__ == tfp_rank1.__version__
