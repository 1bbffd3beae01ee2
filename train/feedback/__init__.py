"""AI feedback: candidates answer prompts, a judge rates the answers, in UltraFeedback's format. Needs no torch."""
