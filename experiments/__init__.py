"""The paper's tables as experiment specs: recipes, the steps they take, and the report beside the paper's values."""
