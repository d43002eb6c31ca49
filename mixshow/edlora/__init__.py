"""ED-LoRA: layer-wise concept embeddings (P+) with a network on text encoder and UNet (arXiv 2305.18292)."""
