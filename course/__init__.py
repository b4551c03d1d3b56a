"""The repository as a course: handouts with bodies taken out, and a grader for what comes back."""
