"""The paper's figures from traces, samples and results: `ed-dpm figure`."""
