"""Files: atomic writing, checkpoints, images, downloads."""
