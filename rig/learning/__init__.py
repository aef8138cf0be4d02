"""The rig learns: labels of reviewers become an adapted model, which is offered, switched to, and taken back."""
