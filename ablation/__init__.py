"""The ablation under its old name, for one version: it is `experiments.cifar10`."""
