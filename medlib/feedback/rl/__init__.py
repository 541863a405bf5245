"""Learning from feedback: PPO, GRPO and DPO over one interface, on the same cases, seeds and budget."""
