"""The paper's tables as a list that runs: recipes, the steps they take, and the report beside the paper's figures."""
