"""Files: atomic writes, reading, remote paths, checkpoints, images, downloads."""
