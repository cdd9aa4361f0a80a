"""The classifier: front end, normalised bands, and the network that the config names.

What it leaves out: windows of long recordings (``infer``), losses, and the networks themselves
(``networks``, one file each). Letters: B batch, F mel bands, T frames, f = F / 16 and t = T / 8
cells, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checkpoint import Checkpoint, restore
from common.errors import WeightsInvalid
from common.features import LogMel
from services.classifier.config import (
    Config,
    HybridSettings,
    ResNetSettings,
    StrideCnnSettings,
    VggSlatSettings,
)
from services.classifier.networks.hybrid import Hybrid
from services.classifier.networks.resnet import ResNet
from services.classifier.networks.scores import Scores
from services.classifier.networks.stride_cnn import StrideCnn
from services.classifier.networks.vgg_slat import VggSlat

Network = Hybrid | ResNet | VggSlat | StrideCnn

WINDOW_OF = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "blackman": torch.blackman_window,
}


def front_end(config: Config) -> LogMel:
    """Return the log-mel front end of a config.

    Raises:
        ValueError: the mel bands are too fine for the spectrum.
    """
    front = LogMel(config.sample_rate, config.n_fft, config.hop_length, config.n_mels)
    front.window.copy_(WINDOW_OF[config.window](config.n_fft))
    return front


def network_of(config: Config) -> Network:
    """Return the network that a config names, fresh."""
    match config.network:
        case HybridSettings() as settings:
            return Hybrid(config, settings)
        case ResNetSettings() as settings:
            return ResNet(config, settings)
        case VggSlatSettings() as settings:
            return VggSlat(config, settings)
        case StrideCnnSettings() as settings:
            return StrideCnn(config, settings)


class Classifier(nn.Module):
    """Waveforms to log-mel, log-mel to scores, scores to probabilities."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.front = front_end(config)
        # without a scale and shift to learn: convolutions follow, and no gradient need reach here
        self.bands = nn.BatchNorm1d(config.n_mels, affine=False)
        self.network = network_of(config)

    def features(self, waveform: Tensor) -> Tensor:
        """Return log-mel (B, F, T) of waveforms (B, samples); T a multiple of 8, at least 8.

        The last segment is filled up with silence.
        """
        segment = self.config.segment_samples
        short = -waveform.shape[-1] % segment
        return self.front(F.pad(waveform, (0, short)))[..., :-1]

    def forward(self, logmel: Tensor, mask: Tensor | None = None) -> Scores:
        """Return the scores.

        Args:
            logmel: (B, F, T) from ``features``, T a multiple of 8.
            mask: (B, f, t) probability of foreground per cell, or None for all ones.
        """
        scores: Scores = self.network(self.network_input(logmel), mask)
        return scores

    def network_input(self, logmel: Tensor) -> Tensor:
        """Return what the network sees, (B, 1, F, T): each band with mean 0 and deviation 1."""
        return self.bands(logmel)[:, None]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return calibrated probabilities (B, K) of the logits of clips, (B, K)."""
        logits = (logits + self.config.shift) / self.config.temperature
        return logits.sigmoid() if self.config.multi_label else logits.softmax(1)

    def segment_probabilities(self, logits: Tensor) -> Tensor:
        """Return calibrated probabilities (B, K, t) of the logits of segments, (B, K, t).

        Sigmoids whatever the labels of a clip are: a segment can hold none of them.
        """
        config = self.config
        return torch.sigmoid((logits + config.segment_shift) / config.segment_temperature)

    def fuse(self) -> None:
        """Fold the network's norms into its convolutions, in eval mode, for inference only."""
        self.network.fuse()


def build(config: Config) -> Classifier:
    """Return a classifier with fresh weights.

    Raises:
        ValueError: the mel bands are too fine for the spectrum.
    """
    return Classifier(config)


def restored(checkpoint: Checkpoint) -> Classifier:
    """Return the classifier of a weights file, on the CPU, in eval mode.

    Raises:
        WeightsInvalid: its config is refused, or the tensors do not fit it; see ``restore``.
    """
    config = Config.from_dict(checkpoint.config)
    try:
        model = build(config)
    except ValueError as error:
        raise WeightsInvalid(f"the classifier's config does not fit: {error}") from error
    restore(model, checkpoint)
    return model.eval()
