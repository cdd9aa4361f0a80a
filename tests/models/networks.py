"""Small networks of every architecture, as configs."""

from __future__ import annotations

from dataclasses import replace

from services.classifier.config import (
    Config,
    HybridSettings,
    NetworkSettings,
    ResNetSettings,
    StrideCnnSettings,
    VggSlatSettings,
)

LABELS = ("dog", "rain", "rooster", "siren")

SMALL_HYBRID = HybridSettings((8, 8, 16, 16), patch_width=16, patch_layers=1, fused_width=16)
SMALL_VGG = VggSlatSettings((4, 8, 8, 8, 16, 16), segment_width=32)


def small(architecture: str, network: NetworkSettings) -> Config:
    return Config(architecture=architecture, labels=LABELS, network=network)


SMALL = {
    "hybrid": small("hybrid", SMALL_HYBRID),
    "resnet": small("resnet", ResNetSettings(width=4, blocks=(2, 1, 1, 1))),
    "vgg_slat": small("vgg_slat", SMALL_VGG),
    "vgg_slat mean": small("vgg_slat", replace(SMALL_VGG, pooling="mean")),
    "vgg_slat lstm": small("vgg_slat", replace(SMALL_VGG, lstm_width=16)),
    "stride_cnn": small("stride_cnn", StrideCnnSettings((8, 8, 16, 16))),
}
