"""The Gaussian prior with photographs' own spectrum, and its exact posterior mean: a Wiener filter."""

from __future__ import annotations

import torch
from torch import Tensor

from guided_diffusion.diffusion.process import per_sample


class SpectrumPrior:
    """The stationary Gaussian whose mean and spectrum are those of some images, and E[x_0 | x_t] under it.

    With F the orthonormal Fourier transform over rows and columns, m the mean of each channel over images and pixels
    and S(f) = mean over the images of F(x - m) F(x - m)^H, a CxC matrix for each frequency f, the prior is
    N(m, F^H S F): its covariance is the mean of (x - m)(x - m)^T over the images and all their cyclic shifts.
    For x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise, whose noise is white in every orthonormal basis,

        E[x_0 | x_t] = m + F^H W F (x_t - sqrt(abar) m),  W(f) = sqrt(abar) S(f) (abar S(f) + (1 - abar) I)^-1.

    :param images: [N, C, H, W].
    """

    def __init__(self, images: Tensor):
        self.mean = images.mean(dim=(0, 2, 3), keepdim=True)
        spectrum_NCHW = torch.fft.rfft2(images - self.mean, norm="ortho")
        S_HWCC = torch.einsum("nchw,ndhw->hwcd", spectrum_NCHW, spectrum_NCHW.conj()) / len(images)
        eigenvalues_HWK, self.basis_HWCK = torch.linalg.eigh(S_HWCC)
        self.variance_KHW = eigenvalues_HWK.clamp(min=0).permute(2, 0, 1)

    def posterior_mean(self, x: Tensor, abar: Tensor) -> Tensor:
        """Return E[x_0 | x_t], shaped and typed like x_t [B, C, H, W] and differentiable in it, for abar [B]."""
        abar = per_sample(abar, x).to(x.dtype)
        spectrum = torch.fft.rfft2(x - abar.sqrt() * self.mean, norm="ortho")
        gain = abar.sqrt() * self.variance_KHW / (abar * self.variance_KHW + 1 - abar)
        spectrum = gain * torch.einsum("hwck,bchw->bkhw", self.basis_HWCK.conj(), spectrum)
        spectrum = torch.einsum("hwck,bkhw->bchw", self.basis_HWCK, spectrum)
        return self.mean + torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")
