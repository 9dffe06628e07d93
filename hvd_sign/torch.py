"""The PyTorch binding under the name that users import: ``import hvd_sign.torch as hvd``."""

from hvd_sign_torch import *
