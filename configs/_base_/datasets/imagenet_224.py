# ImageNet-1K in the layout of MMPretrain's docs/en/user_guides/dataset_prepare.md, in data/imagenet. The pipeline is
# MMPretrain's for ConvNeXt and Swin: RandAugment 9/0.5, erasing with probability 0.25. Mixup and cutmix belong to the
# model.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

# 32 GPUs x 128 = 4096. docs/classification.md says what to type for fewer.
train_dataloader = dict(batch_size=128, num_workers=8, persistent_workers=True)
val_dataloader = dict(batch_size=128, num_workers=8, persistent_workers=True)
test_dataloader = val_dataloader
