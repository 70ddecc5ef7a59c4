"""Where a classifier of clean images should look: photographs, published networks, and a denoiser in closed form."""
