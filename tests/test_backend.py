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
    message = result.stderr.rpartition("ImportError: ")[2]  # the last one, which the user reads
    assert message.startswith(f"{package} needs ")
    assert "needs Keras 3 with the TensorFlow backend" in message
    assert "Received: backend='jax'" in message
    assert "KERAS_BACKEND=tensorflow" in message


def test_versions_agree():
    import bali_keras
    import tfp_rank1

    assert bali_keras.__version__ == tfp_rank1.__version__
