"""Losses that only the enhancer uses. One loss, one class, one source; lower is always better."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-8


class CompressedSpectrumLoss(nn.Module):
    """Squared error of power-compressed spectra, of magnitudes and of complex values, averaged.

    Source: Ephrat et al. 2018, "Looking to listen at the cocktail party" (the compression by 0.3);
    Braun and Tashev 2021, "A consolidated view of loss functions for supervised deep
    learning-based speech enhancement" (the blend of both terms). Unitless.
    """

    def __init__(self, exponent: float = 0.4, complex_share: float = 0.5) -> None:
        super().__init__()
        self.exponent = exponent
        self.complex_share = complex_share

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Return the loss of complex spectra of one shape, at a common scale near 1."""
        e, t = self._magnitude(estimate), self._magnitude(target)
        magnitude_error = (e - t).square().mean()
        e_vector = estimate * (e / self._floored(estimate))
        t_vector = target * (t / self._floored(target))
        gap = e_vector - t_vector
        complex_error = (gap.real.square() + gap.imag.square()).mean()
        return (1.0 - self.complex_share) * magnitude_error + self.complex_share * complex_error

    def _floored(self, spectrum: Tensor) -> Tensor:
        # the root's slope is infinite at zero
        return (spectrum.real.square() + spectrum.imag.square() + TINY).sqrt()

    def _magnitude(self, spectrum: Tensor) -> Tensor:
        return self._floored(spectrum) ** self.exponent


class NegativeSpectralSnr(nn.Module):
    """Minus the signal-to-noise ratio of spectra in dB, bounded to +-``bound_db``.

    By Parseval's theorem this is the ratio of the waveforms, but for the window's overlap.
    Items whose target is silent count as zero.
    """

    def __init__(self, bound_db: float = 30.0) -> None:
        super().__init__()
        self.bound_db = bound_db

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Return the loss of complex spectra (B, F, T)."""
        gap = estimate - target
        noise = (gap.real.square() + gap.imag.square()).flatten(1).sum(1)
        signal = (target.real.square() + target.imag.square()).flatten(1).sum(1)
        bound = 10.0 ** (-self.bound_db / 10.0)
        ratio_db = 10.0 * torch.log10(
            (signal + bound * noise + TINY) / (noise + bound * signal + TINY)
        )
        sounding = signal > TINY
        return -(ratio_db * sounding).sum() / sounding.sum().clamp_min(1)


class RelativisticDiscriminatorLoss(nn.Module):
    """Real should look more real than the average fake, and fake less than the average real.

    Source: Jolicoeur-Martineau 2019, "The relativistic discriminator", section 4.2 (RaSGAN). In
    nats; ln 2 where the discriminator knows nothing.
    """

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the loss of untransformed scores of any shape."""
        real_over_fake = F.softplus(-(real - fake.mean())).mean()
        fake_over_real = F.softplus(fake - real.mean()).mean()
        return 0.5 * (real_over_fake + fake_over_real)


class RelativisticGeneratorLoss(nn.Module):
    """The same with the parts of real and fake exchanged. Source: as above. In nats."""

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the loss of untransformed scores of any shape."""
        fake_over_real = F.softplus(-(fake - real.mean())).mean()
        real_over_fake = F.softplus(real - fake.mean()).mean()
        return 0.5 * (fake_over_real + real_over_fake)


class FeatureMatchingLoss(nn.Module):
    """L1 distance between a discriminator's features of real and fake, averaged over its layers.

    Source: Salimans et al. 2016, "Improved techniques for training GANs", section 3.1, with L1 and
    all layers as in Kumar et al. 2019, "MelGAN". Each layer is scaled by its mean size.
    """

    def forward(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        """Return the loss of the layers' features, lists of tensors of equal shapes."""
        distances = [
            (f - r.detach()).abs().mean() / r.detach().abs().mean().clamp_min(TINY)
            for r, f in zip(real, fake, strict=True)
        ]
        return torch.stack(distances).mean()
