"""`saeuron compare`: artifacts and other edited pipelines side by side, by the evaluation and the attack that each would get alone."""
