"""The release board: what an operator sees of a market's releases, and may decide.

Data (:mod:`.board`), page (:mod:`.page`) and actions (:mod:`.actions`) are plain functions;
``plugins/csrm_board.py`` serves them within Airflow.
"""
