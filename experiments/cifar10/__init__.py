"""The paper's ablation on CIFAR-10: does it help, for which classifiers, and by how much against the noise."""
