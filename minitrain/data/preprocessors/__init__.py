"""Preprocessors: what is learned of a dataset once, and then done to each of its rows.

They are fitted in one pass, scikit-learn's numbers come out, and they are written down as JSON.
"""

from minitrain.data.preprocessors.base import (
    FitStatus,
    Preprocessor,
    PreprocessorNotFittedException,
)
from minitrain.data.preprocessors.chain import Chain
from minitrain.data.preprocessors.concatenator import Concatenator
from minitrain.data.preprocessors.discretizers import (
    CustomKBinsDiscretizer,
    UniformKBinsDiscretizer,
)
from minitrain.data.preprocessors.encoders import MultiHotEncoder, OneHotEncoder, OrdinalEncoder
from minitrain.data.preprocessors.estimator import SklearnPreprocessor
from minitrain.data.preprocessors.imputer import SimpleImputer
from minitrain.data.preprocessors.labels import Categorizer, LabelEncoder
from minitrain.data.preprocessors.rowwise import Normalizer, PowerTransformer
from minitrain.data.preprocessors.scalers import (
    MaxAbsScaler,
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
)
from minitrain.data.preprocessors.text import (
    CountVectorizer,
    FeatureHasher,
    HashingVectorizer,
    Tokenizer,
)
from minitrain.data.preprocessors.vision import TorchVisionPreprocessor

__all__ = [
    "Categorizer",
    "Chain",
    "Concatenator",
    "CountVectorizer",
    "CustomKBinsDiscretizer",
    "FeatureHasher",
    "FitStatus",
    "HashingVectorizer",
    "LabelEncoder",
    "MaxAbsScaler",
    "MinMaxScaler",
    "MultiHotEncoder",
    "Normalizer",
    "OneHotEncoder",
    "OrdinalEncoder",
    "PowerTransformer",
    "Preprocessor",
    "PreprocessorNotFittedException",
    "RobustScaler",
    "SimpleImputer",
    "SklearnPreprocessor",
    "StandardScaler",
    "Tokenizer",
    "TorchVisionPreprocessor",
    "UniformKBinsDiscretizer",
]
