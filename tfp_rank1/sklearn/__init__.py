"""Estimators of scikit-learn for tables: rank-1 nets that say how sure they are.

    from tfp_rank1.sklearn import Rank1Classifier, Rank1Regressor

    model = Rank1Classifier(random_state=0).fit(frame_train, y_train)
    model.predict_proba(frame_test)

Needs the extra `sklearn`: `pip install rank1-bali[sklearn]`.
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        "tfp_rank1.sklearn needs scikit-learn, which is not installed: "
        "pip install 'rank1-bali[sklearn]'"
    ) from error

from tfp_rank1.sklearn.columns import TableColumns
from tfp_rank1.sklearn.docstrings import documented
from tfp_rank1.sklearn.estimators import TableClassifier, TableEstimator, TableRegressor
from tfp_rank1.sklearn.rank1 import Rank1Classifier, Rank1Regressor

__all__ = [
    "Rank1Classifier",
    "Rank1Regressor",
    "TableClassifier",
    "TableColumns",
    "TableEstimator",
    "TableRegressor",
    "documented",
]
