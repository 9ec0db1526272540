"""What a DPFOperatorConfig tells the provisioning controllers: upstream's operator turns it into their flags
(provisioning.md 9.1). Without one the defaults stand.
"""

from __future__ import annotations

from typing import Final

from twin.backends.base import KubeReader, Settings
from twin.model.core import DpfOperatorConfig
from twin.model.meta import Key, new_key
from twin.model.operator import ProvisioningController

CONFIG: Final = "dpfoperatorconfig"
"""The only name that upstream's operator takes."""
GNOI: Final = "gNOI"
REDFISH: Final = "redfish"


def install_interface(kube: KubeReader, settings: Settings) -> str:
    """How DPUs are installed: one way for the whole installation."""
    return interface_of(_controller(kube, settings))


def interface_of(controller: ProvisioningController) -> str:
    interface = controller.install_interface
    return GNOI if interface is None or interface.install_via_redfish is None else REDFISH


def client_secret(kube: KubeReader, settings: Settings) -> str:
    """The name of the Secret that the controllers show to a DMS."""
    return _controller(kube, settings).custom_ca_secret_name or settings.client_secret


def _controller(kube: KubeReader, settings: Settings) -> ProvisioningController:
    config = kube.get(DpfOperatorConfig, new_key(Key, (settings.namespace, CONFIG)))
    return (config.spec.provisioning_controller if config is not None else None) or _DEFAULTS


_DEFAULTS: Final = ProvisioningController()
