"""Strategies for several processes: DDP, FSDP2 and DeepSpeed ZeRO-1."""
