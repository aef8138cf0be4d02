"""What a person asks of a device besides classifying: measure, inspect, mend; and how answers are printed."""
