"""`python -m tests.simulated_device BUILD_FOLDER vjepa-hub ...`: a command on a machine with a simulated accelerator.

Prints, after what the command shows, how many operations the device computed and how often the host read from it.
`build` in place of a command only compiles the device.
"""

import ctypes
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch.utils.cpp_extension import load

NAME = "simulated"


def build(folder: str) -> Any:
    """Compile the device, if that has not been done in this folder yet, and load it."""
    source = Path(__file__).parent / "device.cpp"
    return load("simulated_device", [str(source)], extra_cflags=["-O1"], build_directory=folder)


def register(device: Any) -> None:
    """Make it torch's accelerator, and the one that transformers trains on."""
    torch.utils.rename_privateuse1_backend(NAME)
    device.register_hooks()
    module: Any = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.set_device = module.manual_seed = module.manual_seed_all = lambda number: None
    module.synchronize = torch.accelerator.synchronize = lambda device=None: None
    module.empty_cache = lambda: None
    module.get_rng_state = lambda device=None: torch.get_rng_state()
    module.set_rng_state = lambda state, device=None: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
    torch.UntypedStorage.cpu = _storage_to_cpu  # torch's own wants a C++ method more
    os.environ["ACCELERATE_TORCH_DEVICE"] = NAME


def _storage_to_cpu(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    if storage.device.type == "cpu":
        return storage
    copied = torch.UntypedStorage(storage.size())
    ctypes.memmove(copied.data_ptr(), storage.data_ptr(), storage.size())
    return copied


def main() -> None:
    device = build(sys.argv[1])
    if sys.argv[2] == "build":
        return
    register(device)
    from vjepa_hub.cli import app

    try:
        app(sys.argv[3:])
    finally:
        print(f"operations {device.num_operations()}, reads {device.num_reads()}")


if __name__ == "__main__":
    main()
