"""Train BERT4Rec on a CSV of user, item, time.

python train_bert4rec.py data.data_dir=FOLDER data.data_file=FILE
"""

from src.training.train import main

if __name__ == "__main__":
    main()
