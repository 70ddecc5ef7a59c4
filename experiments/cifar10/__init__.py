"""The paper's ablation on photographs: does it help, for which classifiers, and by how much against the noise."""
