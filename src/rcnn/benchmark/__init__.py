"""What a detector costs: its engines beside each other, and the stages of a prediction."""
