"""`make bench`: float32 and mixed int8 inference of ResNet-50 on this machine, in turn within one run."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from quantlib.errors import ConfigError, QuantlibError
from quantlib.quantization.graph import fuse
from quantlib.quantization.qconfig import QConfig
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.study.race import AT_LEAST, PAUSE
from quantlib.subject import data
from quantlib.subject.benchmark import interleave, machine, ratio
from quantlib.subject.checkpoints import load_checkpoint


def candidates(images: data.Images, batch: int) -> dict[str, Callable[[], Any]]:
    """The networks to time, each as a call on one batch."""
    model = load_checkpoint("resnet50")
    prepared = calibrate(prepare(model, QConfig()), data.batches(images.take(64), 64))
    networks = {
        "float32, as trained": model,
        "float32, batch norm folded": fuse(model).to(memory_format=torch.channels_last),
        "mixed int8": convert(prepared, "mixed"),
    }
    x, _ = next(data.batches(images, batch))

    def call(network: torch.nn.Module) -> Callable[[], Any]:
        return lambda: network(x)

    return {name: call(network) for name, network in networks.items()}


def bench(batch: int, repeats: int) -> None:
    """Print images a second and the ratio to float32 for one batch size."""
    if not 1 <= batch <= 1000:
        raise ConfigError(f"batch is {batch}; the shipped images allow 1 to 1000.")
    calls = candidates(data.load("calibration"), batch)
    with torch.no_grad():
        timings = interleave(calls, repeats, at_least=AT_LEAST, pause=PAUSE)
    baseline = next(iter(calls))
    print(f"batch {batch}")
    for name, timing in timings.items():
        middle, low, high = ratio(timings, baseline, name)
        speed = batch / timing.median
        print(f"  {name:28s} {speed:8.1f} images/s   {middle:5.2f} times [{low:.2f}, {high:.2f}]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when it worked."""
    parser = argparse.ArgumentParser(prog="python -m quantlib.study.bench", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 64], help="batch sizes (default 1 64)")
    parser.add_argument("--repeats", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found = machine()
    print(f"{found['cpu']} ({found['isa']}), {found['threads']} threads, torch {found['torch']}")
    print("medians of interleaved rounds; in brackets the lowest and highest ratio of a round")
    try:
        for batch in options.batch:
            bench(batch, options.repeats)
    except QuantlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
