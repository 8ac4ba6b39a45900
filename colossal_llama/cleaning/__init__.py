"""From raw text to a corpus worth training on: rules, duplicates, decontamination, report."""
