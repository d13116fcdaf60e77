"""Memory and time of converting a released checkpoint of the real size.

Makes a file of a registered model, ViT-L by default, with random weights and AdamW's state for its four parameter
groups (about 5 GB), converts it in child processes, and prints their peak of anonymous memory beside that of a plain
`torch.load`. Exits 1 above the limit.

Anonymous memory (`RssAnon`) is what counts: a process cannot give it back. The peak that the kernel keeps (`VmHWM`)
adds the pages of the mapped file, which are dropped when memory is short, and it keeps no peak of `RssAnon` alone. So
the parent samples it every 2 ms, undisturbed by the child's interpreter lock: a peak is missed by some 10 MB at most,
as memory is written at a few GB/s. Linux only.

    python benchmarks/conversion_memory.py [--directory DIR] [--limit-gb 4]
    python benchmarks/conversion_memory.py --model vjepa2-vitg16 --without-optimizer --features-alone --limit-gb 6
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from vjepa_hub import VJEPAConfig, VJEPAForPreTraining
from vjepa_hub.hub.conversion import TOP_LEVEL_KEYS_WITHOUT_EFFECT, to_original_state
from vjepa_hub.hub.registry import find_model
from vjepa_hub.model.modeling_vjepa import VJEPAPositionEmbeddings

GIGABYTE = 1e9
SAMPLING_INTERVAL = 0.002
IMPORTS = (
    "import sys, torch; from vjepa_hub.hub import conversion; from vjepa_hub.hub.registry import find_model;"
    "config = find_model(sys.argv[3]).config();"
)
TASKS = {
    "pretraining model": "model = conversion.convert_original_checkpoint(sys.argv[1], config)",
    "features folder": "conversion.convert_file(sys.argv[1], sys.argv[2], config)",
    "peer: torch.load": "checkpoint = torch.load(sys.argv[1], weights_only=True)",
}


def build_random_model(config: VJEPAConfig) -> VJEPAForPreTraining:
    with torch.device("meta"):
        model = VJEPAForPreTraining(config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02, generator=generator)
    for module in model.modules():
        if isinstance(module, VJEPAPositionEmbeddings):
            module.reset_table()
    return model


def build_adamw_state(parts: dict[str, dict[str, torch.Tensor]]) -> dict:
    """The state dict of a real AdamW over the release's four groups: two modules, with and without weight decay."""
    trained = [[t for k, t in parts[part].items() if "pos_embed" not in k] for part in ("encoder", "predictor")]
    decayed = [{"params": [t for t in tensors if t.ndim > 1]} for tensors in trained]
    others = [{"params": [t for t in tensors if t.ndim == 1], "weight_decay": 0.0} for tensors in trained]
    optimizer = torch.optim.AdamW(decayed + others, lr=6.25e-4)
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            moments = {name: torch.rand_like(tensor) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[tensor] = {"step": torch.tensor(90000.0), **moments}
    return optimizer.state_dict()


def write_checkpoint(file: Path, config: VJEPAConfig, *, with_optimizer: bool) -> None:
    parts = to_original_state(build_random_model(config))
    run = dict.fromkeys(TOP_LEVEL_KEYS_WITHOUT_EFFECT) | {"epoch": 300}
    if with_optimizer:
        run["opt"] = build_adamw_state(parts)
    torch.save({**parts, **run}, file)


def anonymous_memory(process_id: int) -> int:
    """`RssAnon` of a process in bytes; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def run_and_sample(code: str, *arguments: object) -> tuple[int, float]:
    """Run Python code in a child; its peak of anonymous memory in bytes, and its seconds, imports included."""
    start, peak = time.perf_counter(), 0
    child = subprocess.Popen([sys.executable, "-c", IMPORTS + code, *map(str, arguments)])
    while child.poll() is None:
        peak = max(peak, anonymous_memory(child.pid))
        time.sleep(SAMPLING_INTERVAL)
    if child.returncode:
        raise SystemExit(f"the child ended with {child.returncode}: {code}")
    return peak, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where 7 GB are free [default: the system's]")
    parser.add_argument("--model", default="vjepa-vitl16", help="a name of the registry [default: %(default)s]")
    parser.add_argument("--without-optimizer", action="store_true", help="leave AdamW's state out of the file")
    parser.add_argument("--features-alone", action="store_true", help="convert to a features folder alone")
    parser.add_argument("--limit-gb", type=float, default=4.0, help="of anonymous memory, in 10^9 bytes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        file = Path(directory) / "checkpoint.pth.tar"
        write_checkpoint(file, find_model(options.model).config(), with_optimizer=not options.without_optimizer)
        print(f"file of {options.model}: {file.stat().st_size / GIGABYTE:.2f} GB")
        tasks = {name: code for name, code in TASKS.items() if name[:3] != "pre" or not options.features_alone}
        arguments = (file, Path(directory) / "out", options.model)
        results = {name: run_and_sample(code, *arguments) for name, code in tasks.items()}
    peer = results["peer: torch.load"][0]
    for name, (peak, seconds) in results.items():
        print(
            f"{name:18} peak {peak / GIGABYTE:5.2f} GB anonymous ({peak / peer:.2f} of torch.load), {seconds:5.1f} s"
        )
    return int(
        max(peak for name, (peak, _) in results.items() if not name.startswith("peer")) > options.limit_gb * GIGABYTE
    )


if __name__ == "__main__":
    sys.exit(main())
