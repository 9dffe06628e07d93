"""What ranks that come and go have in common: its names."""

from hvd_sign.standalone.absent import absent_in_elastic

ModelStateHandler = absent_in_elastic("state.ModelStateHandler")
ObjectState = absent_in_elastic("state.ObjectState")
OptimizerStateHandler = absent_in_elastic("state.OptimizerStateHandler")
SamplerStateHandler = absent_in_elastic("state.SamplerStateHandler")
StateHandler = absent_in_elastic("state.StateHandler")
TorchState = absent_in_elastic("TorchState")
get_handler_registry = absent_in_elastic("state.get_handler_registry")
set_handler_registry = absent_in_elastic("state.set_handler_registry")
