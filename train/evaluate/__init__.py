"""MT-Bench and AlpacaEval: answers asked for, judged and scored, in the files of their authors. Needs no torch."""
