"""`ed-dpm run frontier`: FID against the work of a sample, over samplers, steps, feature cache and guidance rules."""
