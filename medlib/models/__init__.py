"""Loading models and asking them: prompts, scoring, occlusion, the dual encoder, the stand-ins."""
