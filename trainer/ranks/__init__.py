"""The processes of a stage: started, stopped and of one mind."""
