"""Parameters by role: factors, and slow weights, which may be frozen."""

from __future__ import annotations

from typing import Any

import keras

from tfp_rank1._steps import SteppingModel
from tfp_rank1.likelihoods import Likelihood


class RolesModel(SteppingModel):
    """The part of a `BayesianModel` that tells factors from all other weights."""

    _likelihood: Likelihood
    _frozen: list[Any]

    @property
    def factor_variables(self) -> list[keras.Variable]:
        """Variables of all factors and their priors, each once."""
        found: dict[int, keras.Variable] = {}
        for layer in self._flatten_layers(include_self=False):
            if not isinstance(layer, RolesModel):  # its layers come by themselves
                found.update({id(v): v for v in getattr(layer, "factor_variables", [])})
        return list(found.values())

    @property
    def slow_weights(self) -> list[keras.Variable]:
        """All other weights of the model: kernels, point biases, stock layers."""
        factors = {id(v) for v in self.factor_variables}
        return [v for v in self.weights if id(v) not in factors]

    def freeze_slow_weights(self, frozen: bool = True) -> None:
        """Train the factors only, around weights that stay as they are; or all of it again.

        Normalization by batches then uses its moving statistics; a learned noise scale of the
        likelihood is still learned. Compile anew afterwards. A compiled model that is saved and
        loaded is still frozen.

        Args:
            frozen: True (default) freezes; False makes what it froze trainable again.

        Raises:
            ValueError: if there are no factors to train.

        Example:
        ```python
        model = tfp_rank1.convert(trained, likelihood="categorical")
        model.freeze_slow_weights()
        model.compile("adam")
        model.fit(x, y, epochs=2)
        ```
        """
        if frozen:
            self._frozen.extend(self._slow_parts())
        for part in self._frozen:
            part.trainable = not frozen
        if not frozen:
            self._frozen.clear()
        self._forget_functions()

    def _slow_parts(self) -> list[Any]:
        """What is trainable now and no factor: batch normalization, and weights of layers."""
        if not any(v.trainable for v in self.factor_variables):
            raise ValueError(
                "The model has no factors that could be trained alone. Unfreeze its rank-1 layers "
                f"first. Received: {len(self.factor_variables)} variables of factors, all frozen"
            )
        noise = {id(v) for v in self._likelihood.variables}
        weights = [v for v in self.slow_weights if id(v) not in noise]
        return [v for v in [*self._normalizations(), *weights] if v.trainable]

    def _normalizations(self) -> list[keras.layers.BatchNormalization]:
        layers = self._flatten_layers(include_self=False)
        return [v for v in layers if isinstance(v, keras.layers.BatchNormalization)]

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`, and what `freeze_slow_weights` froze."""
        config = super().get_compile_config()
        if config and self._frozen:
            frozen = {id(v) for v in self._frozen}
            places = enumerate(self._normalizations())  # names may repeat in nested models
            config["frozen_normalizations"] = [i for i, v in places if id(v) in frozen]
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Freeze and compile as the saved model was, with the optimizer's state to be loaded."""
        config = dict(config)
        places = config.pop("frozen_normalizations", None)
        if places is not None:
            # Saved as frozen by themselves, they would not be made trainable again.
            normalizations = self._normalizations()
            for i in places:
                normalizations[i].trainable = True
            self.freeze_slow_weights()
        super().compile_from_config(config)
