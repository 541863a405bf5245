"""Learning from clinicians: ratings, preferences, the reward model and reinforcement learning."""
