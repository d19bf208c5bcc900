"""Write the top-K items of every user of a table with a trained BERT4Rec, or export the model.

python predict_bert4rec.py data.data_dir=FOLDER data.data_file=FILE inference.topk=20
"""

from src.prediction.predict import main

if __name__ == "__main__":
    main()
