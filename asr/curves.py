"""A run over its epochs: loss, dev word error rate and blank rate as a picture, or in TensorBoard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from asr import files
from asr.errors import InputError


def draw(history: list[dict[str, Any]], path: Path) -> None:
    """Draw the metrics of a run (`metrics.jsonl`, a dictionary an epoch) to `path`.

    Raises:
        AsrError: the picture can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [line["epoch"] + 1 for line in history]
    figure = Figure(figsize=(9, 4), layout="constrained")
    loss, rates = figure.subplots(1, 2)
    loss.plot(epochs, [line["train"]["loss"] for line in history], label="training", color="tab:gray")
    loss.plot(epochs, [line["dev"]["loss"] for line in history], label="dev", color="tab:blue")
    loss.set(title="CTC loss", xlabel="epoch", ylabel="nats a label", yscale="log")
    loss.legend()
    rates.plot(epochs, [100 * line["dev"]["rate"] for line in history], label="dev WER", color="tab:red")
    rates.plot(
        epochs,
        [100 * line["train"]["blank_rate"] for line in history],
        label="blank frames (training)",
        color="tab:gray",
        ls=":",
    )
    best = min(history, key=lambda line: (line["dev"]["rate"], line["dev"]["loss"]))
    rates.annotate(
        f"best: {100 * best['dev']['rate']:.2f} % in epoch {best['epoch'] + 1}",
        (best["epoch"] + 1, 100 * best["dev"]["rate"]),
        xytext=(0.95, 0.5),
        textcoords="axes fraction",
        ha="right",
        arrowprops={"arrowstyle": "->"},
    )
    rates.set(title="Word error rate", xlabel="epoch", ylabel="%", ylim=(0, 105))
    rates.legend()
    for axes in (loss, rates):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    with files.atomic(path) as file:
        FigureCanvasAgg(figure).print_png(file)


def tensorboard(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that adds an epoch's metrics to TensorBoard's event files in `folder`.

    Raises:
        InputError: TensorBoard is not installed (status 2).
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "training.tensorboard=true needs TensorBoard: pip install 'asr[tensorboard]'", status=2
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def add(metrics: dict[str, Any]) -> None:
        for part in ("train", "dev"):
            for name, value in metrics[part].items():
                if isinstance(value, (int, float)):
                    writer.add_scalar(f"{part}/{name}", value, metrics["epoch"])
        writer.flush()

    return add
