"""What files call the contract's columns, and grades, in four languages."""

from __future__ import annotations

import re
import unicodedata

PRODUCT = (
    "product id,product,productid,pid,prod id,product no,product number,product code,item id,item,"
    "item no,sku,asin,goods id,goods no,docid,doc id,document id,object id,"
    "상품id,상품 id,상품번호,상품코드,제품id,商品id,商品 id,商品编号,商品編號,商品番号,商品コード"
)
QUERY = (
    "query,user query,search term,search query,keyword,search keyword,q,search text,query text,"
    "qry,kw,origin query,search,검색어,쿼리,질의,查询,查询词,搜索词,搜尋詞,查詢,检索词,クエリ,"
    "検索語,検索キーワード,検索ワード"
)
TIME = "timestamp,ts,time,event time,created at,datetime,occurred at,시각,일시,시간,时间,時間,日時"
CLIENT = "client id,user id,uid,visitor id,device id,customer id,사용자id,用户id,ユーザーid"
SESSION = "session id,sid,session,visit id,세션id,세션,会话id,工作階段,セッションid,セッション"
SEARCH = "query id,search id,qid,request id,검색id,查询id,検索id"
JUDGED = (
    "label id,judgement id,judgment id,annotation id,example id,rating id,row id,id,"
    "라벨id,标注id,ラベルid"
)
RATER = "rater id,rater,annotator,annotator id,assessor,judge,worker id,평가자,标注员,标注人,評価者"
GUIDELINE = "guideline version,guideline,guidelines,지침,指南版本,ガイドライン"
RATED = f"rated at,judged at,labeled at,date,rating time,평가일시,标注时间,評価日時,{TIME}"
CATEGORY = (
    "category,cat,category path,product category,category name,categories,"
    "카테고리,분류,类目,分类,分類,类别,カテゴリ,カテゴリー"
)
SPELLINGS: dict[str, dict[str, str]] = {
    "catalogue": {
        "product_id": f"{PRODUCT},id",
        "title": "title,product title,product name,item title,"
        "item name,name,prod name,goods name,"
        "상품명,제품명,商品名称,商品名稱,商品标题,标题,商品名,タイトル",
        "brand": "brand,brand name,product brand,manufacturer,"
        "maker,브랜드,제조사,品牌,ブランド,メーカー",
        "category": CATEGORY,
        "description": "description,desc,product description,"
        "details,설명,상세설명,描述,商品描述,説明,商品説明",
        "deleted": "deleted,is deleted,removed,discontinued,삭제,删除,已删除,削除",
    },
    "translations": {
        "translation_id": "translation id,id",
        "kind": "kind,type,종류,类型,種類",
        "source_text": "source text,source,src,src text,원문,原文",
        "target_text": "target text,target,tgt,translation,번역,번역문,译文,譯文,訳文,翻訳",
    },
    "labels": {
        "label_id": JUDGED,
        "query": QUERY,
        "product_id": PRODUCT,
        "grade": "grade,label,relevance,rel,rating,score,"
        "esci label,judgement,judgment,relevance "
        "grade,등급,평점,관련도,라벨,相关性,等级,評分,标签,評価,関連度,ラベル",
        "rater_id": RATER,
        "guideline_version": GUIDELINE,
        "explanation": "explanation,reason,rationale,comment,justification,why,"
        "설명,사유,이유,理由,说明,說明,コメント",
        "held_out": "held out,holdout,hold out,is held out",
        "rated_at": RATED,
    },
    "query_categories": {
        "label_id": JUDGED,
        "query": QUERY,
        "category": f"{CATEGORY},path,taxonomy path,category id path",
        "label": "label,answer,relevant,is relevant,correct,is correct,relevance,judgement,"
        "judgment,grade,라벨,관련,정답,标签,相关性,是否相关,ラベル,関連度,正解",
        "rater_id": RATER,
        "guideline_version": GUIDELINE,
        "rated_at": RATED,
    },
    "ubi_queries": {
        "query_id": f"{SEARCH},id", "user_query": QUERY, "client_id": CLIENT,
        "session_id": SESSION, "timestamp": TIME,
        "bucket": "bucket,experiment arm,variant", "release": "release,model version",
        "query_response_hit_ids": "query response hit ids,"
        "hits,results,result ids,hit ids,"
        "shown products,검색결과,结果,検索結果",
        "application": "application,app",
    },
    "ubi_events": {
        "action_name": "action name,action,event,event type,"
        "event name,행동,이벤트,事件,行为,イベント",
        "query_id": SEARCH, "object_id": PRODUCT,
        "position": "position,rank,pos,순위,位置,排名,順位", "client_id": CLIENT,
        "session_id": SESSION, "timestamp": TIME, "user_query": QUERY,
        "bucket": "bucket,experiment arm,variant", "release": "release,model version",
        "application": "application,app",
    },
}  # fmt: skip
MEANINGS = {
    "exact": "exact,e,yes,y,true,relevant,highly relevant,"
    "perfect,excellent,일치,관련,예,完全匹配,"
    "相关,相關,是,完全一致,関連あり,はい",
    "substitute": "substitute,s,partial,partially relevant,partially,대체,부분일치,부분 관련,"
    "部分相关,部分匹配,替代,部分一致,代替",
    "irrelevant": "irrelevant,i,c,complement,no,n,false,"
    "not relevant,bad,무관,불일치,아니오,不相关,"
    "不相關,不匹配,否,不一致,無関係,関連なし,いいえ",
}


def normal(name: str) -> str:
    """Return a name in lower case with single blanks between its words, also of camelCase."""
    text = unicodedata.normalize("NFKC", name)
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).casefold()
    return " ".join(re.findall(r"[^\W_]+", text))


def _known(spellings: str) -> frozenset[str]:
    found = {normal(word) for word in spellings.split(",")}
    return frozenset(found | {word.replace(" ", "") for word in found})


KNOWN = {
    kind: {column: _known(words) for column, words in columns.items()}
    for kind, columns in SPELLINGS.items()
}
GRADE_OF = {normal(w): meaning for meaning, words in MEANINGS.items() for w in words.split(",")}


def by_name(kind: str, column: str, name: str) -> float:
    """Return how well a name fits: 1 known as it is, 0.6 known words among others, 0 not at all."""
    words = normal(name)
    # of a nested field also its last name: event_attributes.object.object_id
    last = normal(name.rpartition(".")[2])
    known = KNOWN[kind][column]
    if {words, words.replace(" ", ""), last} & known:
        return 1.0
    phrases = [k for k in known if len(k) > 2 and f" {k} " in f" {words} "]
    return 0.6 if phrases else 0.0
