"""Models asked many questions: endpoints, local files, ready answers; each answer kept as it comes, none paid twice."""
