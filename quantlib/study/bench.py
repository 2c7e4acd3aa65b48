"""`make bench`: float32 and mixed int8 inference of ResNet-50 on this machine, in turn within one run."""

import argparse
import sys
from collections.abc import Sequence

import torch

from quantlib.errors import ConfigError, QuantlibError
from quantlib.quantization.graph import fuse
from quantlib.quantization.qconfig import QConfig
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.study.race import race
from quantlib.subject import data
from quantlib.subject.benchmark import ratio
from quantlib.subject.checkpoints import load_checkpoint


def networks(images: data.Images) -> dict[str, torch.nn.Module]:
    """The networks to time, made once for all batch sizes."""
    model = load_checkpoint("resnet50")
    prepared = calibrate(prepare(model, QConfig()), data.batches(images.take(64), 64))
    return {
        "float32, as trained": model,
        "float32, batch norm folded": fuse(model).to(memory_format=torch.channels_last),
        "mixed int8": convert(prepared, "mixed"),
    }


def bench(sizes: Sequence[int], repeats: int) -> None:
    """Print images a second and the ratio to float32, by batch size."""
    for size in sizes:
        if not 1 <= size <= 1000:
            raise ConfigError(f"batch is {size}; the shipped images allow 1 to 1000.")
    images = data.load("calibration")
    racers = networks(images)
    sample, _ = next(data.batches(images, max(sizes, default=1)))
    for size, timings in race(racers, sample, sizes, repeats).items():
        print(f"batch {size}")
        for name, timing in timings.items():
            middle, low, high = ratio(timings, next(iter(racers)), name)
            speed = size / timing.median
            print(f"  {name:28s} {speed:8.1f} images/s   {middle:5.2f} times [{low:.2f}, {high:.2f}]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when it worked."""
    parser = argparse.ArgumentParser(prog="python -m quantlib.study.bench", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 64], help="batch sizes (default 1 64)")
    parser.add_argument("--repeats", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("medians of interleaved rounds; in brackets the lowest and highest ratio of a round")
    try:
        bench(options.batch, options.repeats)
    except QuantlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
